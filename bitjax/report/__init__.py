"""Makes tables, pictures and a page from run folders."""
