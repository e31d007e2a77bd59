"""`odenet merge`: parts of a job, measured on their own, as one."""
