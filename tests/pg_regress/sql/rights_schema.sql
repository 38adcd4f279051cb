-- A schema named impersonate that somebody made before: CREATE EXTENSION must not put its objects into a schema that an
-- ordinary role owns or may create in, for that role could drop them, or put functions of its own beside them.
\set SHOW_CONTEXT never
DROP EXTENSION impersonate;
DROP SCHEMA IF EXISTS impersonate;
CREATE ROLE mallory LOGIN;
CREATE SCHEMA impersonate AUTHORIZATION mallory;
CREATE EXTENSION impersonate;
\echo :SQLSTATE
SELECT count(*) AS extensions FROM pg_extension WHERE extname = 'impersonate';
\c - mallory
DROP SCHEMA impersonate CASCADE;
\c - postgres
SELECT count(*) AS extensions FROM pg_extension WHERE extname = 'impersonate';
-- A superuser's schema in which mallory may create.
CREATE SCHEMA impersonate;
GRANT CREATE ON SCHEMA impersonate TO mallory;
CREATE EXTENSION impersonate;
\echo :SQLSTATE
SELECT count(*) AS extensions FROM pg_extension WHERE extname = 'impersonate';
