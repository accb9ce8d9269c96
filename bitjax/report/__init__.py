"""Tables, pictures and a page from run folders."""
