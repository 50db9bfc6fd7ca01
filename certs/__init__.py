"""Who a peer is, and where keys live."""
