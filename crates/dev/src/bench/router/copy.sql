-- $rows rows of 8,000 bytes.
copy (select repeat('x', 8000) from generate_series(1, $rows)) to stdout
