/* Search shows a line of each page that it found, and fetches the page for it, which browsers refuse
   for files. There it shows the titles alone. */
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
