-- Who runs the tests.
create role postgres superuser login password 'postgres'
