"""What `deepgen_ext.profile()` and `deepgen profile` are made of."""
