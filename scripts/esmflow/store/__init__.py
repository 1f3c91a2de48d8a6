"""The store of embeddings: content-addressed, sealed, shared by runs."""
