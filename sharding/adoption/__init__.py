"""Tars that others wrote, one by one."""
