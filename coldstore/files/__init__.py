"""A folder of files as an agent's memory: read whole, compared, put in place whole, watched. Knows no store and no database."""
