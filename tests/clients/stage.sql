-- What the clients find: alice may act as bob, and so by an e-mail address.
CREATE DATABASE clients;
\connect clients
CREATE EXTENSION impersonate;
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
GRANT "SET USER" (bob) TO alice;
INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('bob@example.com', 'bob');
