"""What could be wrong with a machine or a job, looked for before it costs anything."""
