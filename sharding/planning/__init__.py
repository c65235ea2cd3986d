"""Which sample goes where: pure functions of the catalog and the options."""
