-- What an earlier life of this node gave from its sequences, whether that is known, and the sequences too short to skip
-- a range.
create temporary table seed_known (known boolean not null);
create temporary table seed_given (sequence oid primary key, last_value bigint not null);
create temporary table seed_short (sequence oid primary key)
