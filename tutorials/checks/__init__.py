"""What the lessons' exercises know: solutions, usual slips, and what to say of each. Open a file only to author it."""
