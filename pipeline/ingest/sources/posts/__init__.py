"""Posts captured by 4CAT, Zeeschuimer and Apify: tables in which a row is a post with one or several images."""
