-- What one reader sees at one moment: how far every writer is and what it had seen, and whose rows there are.
select 'progress', writer, seq, saw::text from hot_progress
union all select 'hot_row', writer, seq, '' from hot_row
union all select 'hot_unique', writer, seq, '' from hot_unique
