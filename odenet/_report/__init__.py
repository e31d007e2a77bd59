"""What every job prints and draws with: units, tables, rows, figures, HTML."""
