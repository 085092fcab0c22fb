"""Measurements that a user can repeat on the own machine, model and documents."""
