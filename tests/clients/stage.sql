-- What the clients find: alice may act as bob, and so by an e-mail address; tool knows SET ROLE alone.
CREATE DATABASE clients;
\connect clients
CREATE EXTENSION impersonate;
CREATE ROLE alice LOGIN;
CREATE ROLE tool LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
GRANT "SET USER" (bob) TO alice, tool;
ALTER ROLE tool SET impersonate.capture_set_role = on;
INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('bob@example.com', 'bob');
CREATE TABLE bobs AS SELECT 'of bob' AS what;
ALTER TABLE bobs OWNER TO bob;
CREATE TABLE seen (number serial, who text);
GRANT ALL ON seen, seen_number_seq TO alice, tool, bob;
