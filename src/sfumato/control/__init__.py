"""Control: copies of networks and other parts that steer a network by pictures."""
