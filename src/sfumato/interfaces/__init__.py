"""What a person or program touches: requests, recipes in pictures, the command line."""
