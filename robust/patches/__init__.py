"""The command `robust patch`: what a patch is made for, its making, its measurement and what is kept of it."""
