"""What crawls look like: one module per layout, from files of a source to records."""
