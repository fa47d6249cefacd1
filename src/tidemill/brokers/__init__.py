"""The adapters that come with Tidemill, one file or folder each. Found by URL scheme, never imported by the core."""
