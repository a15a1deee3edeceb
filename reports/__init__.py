"""Makes statistics, figures, pages and a site from stored records."""
