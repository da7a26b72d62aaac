"""Images and labels, from any source, in batches."""
