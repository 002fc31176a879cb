-- no rows: puts a token into the queue of notifications, and hears it; nobody need wait for its commit to be kept
set local synchronous_commit = off;
{listens}notify {post}, {token}
