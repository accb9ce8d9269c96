"""Run folders: everything that writes and reads them."""
