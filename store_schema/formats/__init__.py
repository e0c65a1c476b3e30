"""Region features in the forms that others wrote them in: read into a store, written out of one."""
