"""A finished run behind an address: batches that know what comes."""
