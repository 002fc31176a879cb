-- no rows: a session that does nothing but listen, on a channel for the router's own tokens
set idle_session_timeout = 0;
set application_name = 'synapsedb: LISTEN';
listen {post}
