"""Where runs are carried out: here, on this machine's cores."""
