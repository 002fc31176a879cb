-- pgvector in a new database, when its files are on this machine.
do $vector$
begin
    if exists (select from pg_available_extensions where name = 'vector') then
        create extension if not exists vector;
    end if;
end
$vector$
