-- What check-packages.sh asks of a server that a package was installed into: a right, a switch, a refusal, the record.
\set ON_ERROR_STOP on
SHOW shared_preload_libraries;
CREATE DATABASE packages;
\c packages
CREATE EXTENSION impersonate;
SELECT 'library', impersonate.library_version() = extversion FROM pg_extension WHERE extname = 'impersonate';
CREATE ROLE package_anna LOGIN;
CREATE ROLE package_bob LOGIN;
GRANT "SET USER" (package_bob) TO package_anna;
\c - package_anna
SELECT setuser('package_bob', reason => 'packages');
SELECT current_user, session_user;
SELECT setuser();
\set ON_ERROR_STOP off
SELECT setuser('postgres');
\set ON_ERROR_STOP on
\c - postgres
SELECT impersonate.audit_sync();
SELECT event, session_user_name, user_name, sqlstate, reason FROM impersonate.audit ORDER BY event_id;
SELECT ok, rows_checked FROM impersonate.audit_verify();
\c postgres
DROP DATABASE packages;
DROP ROLE package_anna, package_bob;
