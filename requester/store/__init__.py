"""The requester's memory: jobs with their signed orders, journals, documents and blobs, below the data folder."""
