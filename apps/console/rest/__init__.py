"""REST of the dashboard under `/api/`: HTTP in, the same services as `/v2`, HTTP out."""
