"""What people see at the terminal."""
