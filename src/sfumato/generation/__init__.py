"""From a model and what is said to pictures: the request checked, walked and decoded."""
