select name, setting, context
from pg_catalog.pg_settings
where source = 'client'
