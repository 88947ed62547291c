"""What builds the documentation's site beside mkdocs itself."""
