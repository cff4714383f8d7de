"""Claims judged, and the page that shows them."""
