//! The spool: where a standby keeps its events until they are in the primary's table (N2).
//!
//! A folder per database, with append-only files, the *segments*. A segment is a head that says whose it is, and then
//! records: events in the queue's form (`event.rs`), numbered from 1 without gaps over all segments of a spool, each
//! with its checksum and with a hash over the one before, as rows have. A spool belongs to a node of a system: what a
//! base backup brought from another node is never taken for one's own.
//!
//! # What is on disk
//! Whoever appends syncs before it says that an event is stored. Each record carries how much of its file was synced
//! when it was written. After a crash the file may end in records that were not: from the first one that is torn on
//! they are cut off, as nobody was told of them. But where a later record says that this place had been synced, what is
//! there is damage, and nothing is cut: it is an error that a human must look at.
//!
//! This file needs nothing of Postgres.

use super::chain::{self, Hash};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where spools are unless it is said otherwise: below the data folder.
pub const FOLDER: &str = "impersonate_spool";

/// How the names of segments end, and of those of a spool that was given up.
const SEGMENT: &str = "segment";
const RETIRED: &str = "retired";

/// A segment that has more is followed by another; sooner where the limit is so low that few would fit.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// Segments that fit into the limit. What the primary has stays in the newest and in the one before, and must leave
/// room enough.
const SEGMENTS_IN_LIMIT: u64 = 8;

/// The longest name of a node.
pub const NODE_BYTES: usize = 255;

/// Changes when the form of the head, of records, or of the events in them does.
const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"IMPSPOOL";
const FORM: &[u8; 8] = b"spool/1\0";

/// Of a segment's head: magic, version, checksum, system, spool, database, length of the name, first, hash, the name.
const HEAD: usize = 512;
const NAME_AT: usize = 8 + 4 + 4 + 8 + 16 + 4 + 4 + 8 + 32;

/// Of a record: length, checksum, position, synced, hash.
const RECORD: usize = 4 + 4 + 8 + 8 + 32;

/// More than any event has.
const LONGEST: usize = 256 * 1024 * 1024;

/// Whose a spool is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The system identifier of the cluster, which all its nodes share.
    pub system: u64,
    pub node: Vec<u8>,
    pub database: u32,
}

/// The head of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub owner: Owner,
    pub spool: [u8; 16],
    /// Position of its first record.
    pub first: u64,
    /// The hash before that.
    pub before: Hash,
}

/// Why something can't be done with a spool.
#[derive(Debug)]
pub enum Trouble {
    Io {
        doing: &'static str,
        file: PathBuf,
        error: io::Error,
    },
    /// What is there isn't what was written.
    Damaged { file: PathBuf, what: String },
    /// The limit, in bytes.
    Full { limit: u64 },
}

impl Trouble {
    /// SQLSTATE.
    pub fn sqlstate(&self) -> [u8; 5] {
        match self {
            Trouble::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull => *b"53100",
            Trouble::Io { .. } => *b"58030",
            Trouble::Damaged { .. } => *b"XX001",
            Trouble::Full { .. } => *b"53400",
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Trouble::Io { doing, file, error } => write!(to, "could not {doing} \"{}\": {error}", file.display()),
            Trouble::Damaged { file, what } => write!(to, "audit spool \"{}\" is damaged: {what}", file.display()),
            Trouble::Full { limit } => write!(
                to,
                "the audit spool is full: impersonate.audit_spool_limit is {} MB, and the primary has not confirmed more",
                limit / 1024 / 1024
            ),
        }
    }
}

fn io<'a>(doing: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> Trouble + 'a {
    move |error| Trouble::Io {
        doing,
        file: file.to_owned(),
        error,
    }
}

/// A file of a spool's folder.
#[derive(Clone, Debug)]
pub struct Segment {
    pub path: PathBuf,
    pub bytes: u64,
    /// None for what isn't a head, or of another version.
    pub head: Option<Head>,
    /// Of a spool that was given up: the newest position that the primary had.
    pub retired: Option<u64>,
}

impl Segment {
    /// Whether it is `owner`'s own.
    pub fn is_of(&self, owner: &Owner) -> bool {
        self.head.as_ref().is_some_and(|head| head.owner == *owner)
    }
}

/// The folder of a database's spool, below the folder of all.
pub fn folder(root: &Path, database: u32) -> PathBuf {
    root.join(database.to_string())
}

/// The databases that have a folder.
pub fn databases(root: &Path) -> Vec<u32> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The segments of a folder, those of a spool together and in order. A folder that isn't there has none.
pub fn segments(folder: &Path) -> Result<Vec<Segment>, Trouble> {
    let mut found = all_segments(folder)?;
    found.retain(|segment| segment.retired.is_none());
    Ok(found)
}

/// From the name that [`put_aside`] gives.
fn confirmed_in(path: &Path) -> u64 {
    let name = path.file_stem().and_then(OsStr::to_str);
    let number = name.and_then(|name| u64::from_str_radix(name.rsplit('-').next()?, 16).ok());
    number.unwrap_or(0)
}

/// As [`segments`], and those of spools that were given up with events in them.
pub fn all_segments(folder: &Path) -> Result<Vec<Segment>, Trouble> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("read", folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io("read", folder))?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        let retired = match extension {
            Some(SEGMENT) => None,
            Some(RETIRED) => Some(confirmed_in(&path)),
            _ => continue,
        };
        let mut file = match File::open(&path) {
            // Confirmed, and removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(io("open", &path))?,
        };
        let bytes = file.metadata().map_err(io("read", &path))?.len();
        let mut head = Vec::new();
        Read::take(&mut file, HEAD as u64)
            .read_to_end(&mut head)
            .map_err(io("read", &path))?;
        found.push(Segment {
            path,
            bytes,
            head: Head::decode(&head),
            retired,
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD);
        let node = &self.owner.node[..self.owner.node.len().min(NODE_BYTES)];
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.owner.system.to_le_bytes());
        bytes.extend(self.spool);
        bytes.extend(self.owner.database.to_le_bytes());
        bytes.extend((node.len() as u32).to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(self.before);
        bytes.extend(node);
        bytes.resize(HEAD, 0);
        let sum = checksum(&bytes[16..]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Head> {
        let (head, version, sum) = (bytes.get(..HEAD)?, number(bytes, 8)?, number(bytes, 12)?);
        if !head.starts_with(MAGIC) || version != VERSION || sum != checksum(&head[16..]) {
            return None;
        }
        let length = number(head, 44)? as usize;
        Some(Head {
            owner: Owner {
                system: long(head, 16)?,
                node: head.get(NAME_AT..NAME_AT + length)?.to_vec(),
                database: number(head, 40)?,
            },
            spool: head.get(24..40)?.try_into().ok()?,
            first: long(head, 48)?,
            before: head.get(56..88)?.try_into().ok()?,
        })
    }

    fn path(&self, folder: &Path) -> PathBuf {
        let spool: String = self.spool.iter().map(|byte| format!("{byte:02x}")).collect();
        folder.join(format!("{spool}-{:016x}.{SEGMENT}", self.first))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The hash of the event at `position`.
pub fn hash(before: &Hash, position: u64, event: &[u8]) -> Hash {
    let mut sha = Sha256::new();
    sha.update(before);
    sha.update(FORM);
    sha.update(position.to_be_bytes());
    sha.update(event);
    sha.finalize().into()
}

/// CRC-32C (Castagnoli), as RFC 3720 has it. It is on disk: another checksum is another `VERSION`.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// An event in a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub position: u64,
    pub hash: Hash,
    /// In the queue's form.
    pub event: Vec<u8>,
}

/// A record where it stands in its file.
struct Found<'a> {
    position: u64,
    synced: u64,
    hash: Hash,
    event: &'a [u8],
    /// Bytes that it takes.
    size: usize,
}

fn record_at(bytes: &[u8]) -> Option<Found<'_>> {
    let length = number(bytes, 0)? as usize;
    if length > LONGEST {
        return None;
    }
    let record = bytes.get(..RECORD + length)?;
    (number(record, 4)? == checksum(&record[8..])).then_some(())?;
    Some(Found {
        position: long(record, 8)?,
        synced: long(record, 16)?,
        hash: record.get(24..RECORD)?.try_into().ok()?,
        event: &record[RECORD..],
        size: (RECORD + length).next_multiple_of(8),
    })
}

fn put_record(to: &mut Vec<u8>, position: u64, synced: u64, hash: &Hash, event: &[u8]) {
    let start = to.len();
    to.extend((event.len() as u32).to_le_bytes());
    to.extend([0; 4]);
    to.extend(position.to_le_bytes());
    to.extend(synced.to_le_bytes());
    to.extend(hash);
    to.extend(event);
    let sum = checksum(&to[start + 8..]);
    to[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    to.resize(to.len().next_multiple_of(8), 0);
}

/// Entries as they are sent.
pub fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    for entry in entries {
        put_record(&mut bytes, entry.position, 0, &entry.hash, &entry.event);
    }
    bytes
}

/// What [`pack`] made: none for no bytes at all, and `Err` for what isn't that, or of another version.
pub fn unpack(bytes: &[u8]) -> Result<Vec<Entry>, &'static str> {
    let mut entries = Vec::new();
    if bytes.is_empty() {
        return Ok(entries);
    }
    if number(bytes, 0) != Some(VERSION) {
        return Err("it is of another version of impersonate");
    }
    let mut at = 8;
    while at < bytes.len() {
        let found = record_at(&bytes[at..]).ok_or("a record is broken")?;
        entries.push(Entry {
            position: found.position,
            hash: found.hash,
            event: found.event.to_vec(),
        });
        at += found.size;
    }
    Ok(entries)
}

/// What a segment holds.
struct Content {
    entries: Vec<Entry>,
    /// Where the last whole record ends.
    end: u64,
    /// What is behind it is no record.
    torn: bool,
    /// There was enough before the end.
    stopped: bool,
    /// The position behind the last record, and its hash.
    next: u64,
    hash: Hash,
}

/// A place in a segment: the position that comes there, and the hash before it.
#[derive(Clone, Copy)]
struct Place {
    byte: u64,
    next: u64,
    hash: Hash,
}

/// Reads a segment, from a place that an earlier reading came to or from its beginning. `wanted` says of which positions
/// the entries are returned; all are looked at, until the returned events have `enough` bytes.
fn read(
    segment: &Segment,
    head: &Head,
    from: Option<Place>,
    wanted: impl Fn(u64) -> bool,
    enough: usize,
) -> Result<Content, Trouble> {
    let damaged = |what: String| Trouble::Damaged {
        file: segment.path.clone(),
        what,
    };
    let from = from.unwrap_or(Place {
        byte: HEAD as u64,
        next: head.first,
        hash: head.before,
    });
    let mut bytes = Vec::new();
    File::open(&segment.path)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(from.byte))?;
            file.read_to_end(&mut bytes)
        })
        .map_err(io("read", &segment.path))?;
    let mut content = Content {
        entries: Vec::new(),
        end: from.byte,
        torn: false,
        stopped: false,
        next: from.next,
        hash: from.hash,
    };
    let (mut at, mut size) = (0, 0);
    while at < bytes.len() {
        if size >= enough {
            content.stopped = true;
            break;
        }
        let found = record_at(&bytes[at..]).filter(|found| at + found.size <= bytes.len());
        let Some(found) = found else {
            content.torn = true;
            break;
        };
        if found.position != content.next || found.hash != hash(&content.hash, found.position, found.event) {
            return Err(damaged(format!(
                "the record at byte {} is not the one of position {}",
                content.end, content.next
            )));
        }
        if wanted(found.position) {
            size += found.event.len();
            content.entries.push(Entry {
                position: found.position,
                hash: found.hash,
                event: found.event.to_vec(),
            });
        }
        content.next += 1;
        content.hash = found.hash;
        at += found.size;
        content.end += found.size as u64;
    }
    if content.torn {
        // Records begin at multiples of 8. One that knows this place as synced makes it damage.
        let later = (at + 8..bytes.len())
            .step_by(8)
            .filter_map(|at| record_at(&bytes[at..]));
        if later.into_iter().any(|later| later.synced > content.end) {
            return Err(damaged(format!(
                "position {} at byte {} cannot be read, and later ones can",
                content.next, content.end
            )));
        }
    }
    Ok(content)
}

/// The spool of this node and database that is written to.
pub struct Spool {
    folder: PathBuf,
    owner: Owner,
    spool: [u8; 16],
    /// The segment being written, if there is one.
    open: Option<Open>,
    next: u64,
    hash: Hash,
    /// No fewer bytes than all its segments take: some may have left since.
    used: u64,
}

struct Open {
    path: PathBuf,
    file: File,
    /// What is synced, and where the next record goes.
    length: u64,
    /// Something behind `length` could not be cut off.
    dirty: bool,
}

impl Spool {
    /// Opens the spool of `owner`, or begins one with the id `fresh`. Torn records at its end are cut off. Spools that
    /// `retired` names are let alone.
    pub fn open(
        folder: &Path,
        owner: &Owner,
        fresh: [u8; 16],
        retired: impl Fn(&[u8; 16]) -> bool,
    ) -> Result<Spool, Trouble> {
        let own = own_segments(folder, owner, &retired)?;
        let Some((last, last_head)) = own.last() else {
            return Ok(Spool {
                folder: folder.to_owned(),
                owner: owner.clone(),
                spool: fresh,
                open: None,
                next: 1,
                hash: chain::START,
                used: u64::MAX,
            });
        };
        let content = read(last, last_head, None, |_| false, usize::MAX)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&last.path)
            .map_err(io("open", &last.path))?;
        if content.torn {
            file.set_len(content.end).map_err(io("truncate", &last.path))?;
        }
        // What a killed writer wrote last may not have been synced.
        file.sync_all().map_err(io("sync", &last.path))?;
        file.seek(SeekFrom::Start(content.end))
            .map_err(io("read", &last.path))?;
        Ok(Spool {
            folder: folder.to_owned(),
            owner: owner.clone(),
            spool: last_head.spool,
            open: Some(Open {
                path: last.path.clone(),
                file,
                length: content.end,
                dirty: false,
            }),
            next: content.next,
            hash: content.hash,
            used: u64::MAX,
        })
    }

    pub fn id(&self) -> [u8; 16] {
        self.spool
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The newest position that is stored; 0 for none.
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// Appends events and syncs them. Either all are stored, or none.
    pub fn append(&mut self, events: &[Vec<u8>], limit: u64) -> Result<(), Trouble> {
        if events.is_empty() {
            return Ok(());
        }
        let needed: u64 = events
            .iter()
            .map(|event| (RECORD + event.len()).next_multiple_of(8) as u64)
            .sum();
        if self.used.saturating_add(needed) > limit {
            let all = segments(&self.folder)?.into_iter();
            let own = all.filter(|segment| segment.head.as_ref().is_some_and(|head| head.spool == self.spool));
            self.used = own.map(|segment| segment.bytes).sum();
            if self.used.saturating_add(needed) > limit {
                return Err(Trouble::Full { limit });
            }
        }
        let enough = SEGMENT_BYTES.min(limit / SEGMENTS_IN_LIMIT);
        if self.open.as_ref().is_none_or(|open| open.length >= enough) {
            self.open = Some(self.begin()?);
            self.used += HEAD as u64;
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.dirty {
            open.cut()?;
        }
        let (mut next, mut last) = (self.next, self.hash);
        let mut bytes = Vec::with_capacity(needed as usize);
        for event in events {
            last = hash(&last, next, event);
            put_record(&mut bytes, next, open.length, &last, event);
            next += 1;
        }
        let written = open.file.write_all(&bytes).map_err(io("write", &open.path));
        let stored = written.and_then(|()| open.file.sync_data().map_err(io("sync", &open.path)));
        if let Err(trouble) = stored {
            open.dirty = true;
            // If that fails too, nothing is appended before it is done.
            let _ = open.cut();
            return Err(trouble);
        }
        open.length += bytes.len() as u64;
        self.used += needed;
        (self.next, self.hash) = (next, last);
        Ok(())
    }

    fn begin(&self) -> Result<Open, Trouble> {
        let head = Head {
            owner: self.owner.clone(),
            spool: self.spool,
            first: self.next,
            before: self.hash,
        };
        // No more than these two: where something else is missing, a disk may be.
        for folder in [self.folder.parent(), Some(&*self.folder)].into_iter().flatten() {
            make_folder(folder)?;
        }
        let path = head.path(&self.folder);
        // Under another name until it is whole.
        let draft = path.with_extension("new");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(io("create", &draft))?;
        file.write_all(&head.encode()).map_err(io("write", &draft))?;
        file.sync_all().map_err(io("sync", &draft))?;
        fs::rename(&draft, &path).map_err(io("rename", &draft))?;
        sync_folder(&self.folder)?;
        Ok(Open {
            path,
            file,
            length: HEAD as u64,
            dirty: false,
        })
    }
}

impl Open {
    fn cut(&mut self) -> Result<(), Trouble> {
        self.file.set_len(self.length).map_err(io("truncate", &self.path))?;
        self.file
            .seek(SeekFrom::Start(self.length))
            .map_err(io("truncate", &self.path))?;
        self.dirty = false;
        Ok(())
    }
}

/// Makes a folder that isn't there, durably.
fn make_folder(folder: &Path) -> Result<(), Trouble> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => {
            made.map_err(io("create", folder))?;
            folder.parent().map_or(Ok(()), sync_folder)
        }
    }
}

fn sync_folder(folder: &Path) -> Result<(), Trouble> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io("sync", folder))
}

/// The segments of `owner`'s spool, in order and without a gap.
fn own_segments(
    folder: &Path,
    owner: &Owner,
    retired: &impl Fn(&[u8; 16]) -> bool,
) -> Result<Vec<(Segment, Head)>, Trouble> {
    let mut own: Vec<(Segment, Head)> = Vec::new();
    for segment in segments(folder)? {
        match segment.head.clone() {
            // Whose it is can't be told: it may be one's own.
            None => {
                return Err(Trouble::Damaged {
                    file: segment.path,
                    what: "its head cannot be read".to_owned(),
                })
            }
            Some(head) if head.owner == *owner && !retired(&head.spool) => own.push((segment, head)),
            Some(_) => (),
        }
    }
    for pair in own.windows(2) {
        if pair[0].1.spool != pair[1].1.spool {
            return Err(Trouble::Damaged {
                file: pair[1].0.path.clone(),
                what: "there is another spool of this node".to_owned(),
            });
        }
    }
    Ok(own)
}

/// What a reader found.
#[derive(Debug)]
pub struct Batch {
    pub spool: [u8; 16],
    pub entries: Vec<Entry>,
    /// The oldest position that is still here.
    pub oldest: u64,
}

/// Reads a spool from front to back, beside whoever writes it.
pub struct Reader {
    folder: PathBuf,
    owner: Owner,
    /// Where the last reading came to.
    place: Option<(PathBuf, Place)>,
}

impl Reader {
    pub fn new(folder: &Path, owner: &Owner) -> Self {
        Reader {
            folder: folder.to_owned(),
            owner: owner.clone(),
            place: None,
        }
    }

    /// Events from position `from` on, about `bytes` of them and at least one, if there are any; none after `until`.
    /// What is returned is on disk. None when the owner has no spool here.
    pub fn entries(
        &mut self,
        retired: impl Fn(&[u8; 16]) -> bool,
        from: u64,
        until: u64,
        bytes: usize,
    ) -> Result<Option<Batch>, Trouble> {
        let own = own_segments(&self.folder, &self.owner, &retired)?;
        let Some((_, oldest)) = own.first() else {
            return Ok(None);
        };
        let mut batch = Batch {
            spool: oldest.spool,
            entries: Vec::new(),
            oldest: oldest.first,
        };
        let mut size = 0;
        for (at, (segment, head)) in own.iter().enumerate() {
            let end = own.get(at + 1).map(|(_, next)| next.first);
            if end.is_some_and(|end| end <= from) {
                continue;
            }
            let known = self
                .place
                .as_ref()
                .filter(|(path, place)| *path == segment.path && place.next <= from);
            let known = known.map(|(_, place)| *place);
            let content = read(
                segment,
                head,
                known,
                |position| position >= from && position <= until,
                bytes.saturating_sub(size),
            )?;
            // In the cache of the system it may be newer than on disk.
            File::open(&segment.path)
                .and_then(|file| file.sync_data())
                .map_err(io("sync", &segment.path))?;
            if !content.stopped && end.is_some_and(|end| content.torn || content.next != end) {
                return Err(Trouble::Damaged {
                    file: segment.path.clone(),
                    what: format!("it ends with position {}", content.next - 1),
                });
            }
            let mut place = known.unwrap_or(Place {
                byte: HEAD as u64,
                next: head.first,
                hash: head.before,
            });
            for entry in content.entries {
                if size >= bytes {
                    return Ok(Some(batch));
                }
                // Those in front of the first that is wanted are passed over, and read again.
                if place.next == entry.position {
                    place.byte += (RECORD + entry.event.len()).next_multiple_of(8) as u64;
                    place.next += 1;
                    place.hash = entry.hash;
                    self.place = Some((segment.path.clone(), place));
                }
                size += entry.event.len();
                batch.entries.push(entry);
            }
            if size >= bytes {
                break;
            }
        }
        Ok(Some(batch))
    }
}

/// The id of `owner`'s spool; None when there is none.
pub fn newest_id(
    folder: &Path,
    owner: &Owner,
    retired: impl Fn(&[u8; 16]) -> bool,
) -> Result<Option<[u8; 16]>, Trouble> {
    Ok(own_segments(folder, owner, &retired)?
        .last()
        .map(|(_, head)| head.spool))
}

/// The newest position of `owner`'s spool that is whole, 0 for none, with the spool's id; None when there is no spool.
pub fn newest(
    folder: &Path,
    owner: &Owner,
    retired: impl Fn(&[u8; 16]) -> bool,
) -> Result<Option<([u8; 16], u64)>, Trouble> {
    match own_segments(folder, owner, &retired)?.last() {
        Some((last, head)) => Ok(Some((
            head.spool,
            read(last, head, None, |_| false, usize::MAX)?.next - 1,
        ))),
        None => Ok(None),
    }
}

/// Removes the segments of `spool` whose events are all up to `confirmed`, but for the `keep` newest.
pub fn remove_confirmed(
    folder: &Path,
    owner: &Owner,
    spool: &[u8; 16],
    confirmed: u64,
    keep: usize,
) -> Result<usize, Trouble> {
    let own: Vec<(Segment, Head)> = segments(folder)?
        .into_iter()
        .filter(|segment| segment.is_of(owner))
        .filter_map(|segment| Some((segment.clone(), segment.head?)))
        .filter(|(_, head)| head.spool == *spool)
        .collect();
    let mut removed = 0;
    for (at, (segment, head)) in own.iter().enumerate().take(own.len().saturating_sub(keep)) {
        let end = match own.get(at + 1) {
            Some((_, next)) => next.first,
            None => read(segment, head, None, |_| false, usize::MAX)?.next,
        };
        if end > confirmed + 1 {
            break;
        }
        fs::remove_file(&segment.path).map_err(io("remove", &segment.path))?;
        removed += 1;
    }
    if removed > 0 {
        sync_folder(folder)?;
    }
    Ok(removed)
}

/// Of a spool of `owner` that is given up: removes what is confirmed, and puts the rest aside, where it stays. Returns the
/// position of the first event that was put aside; None when there was none.
pub fn put_aside(folder: &Path, owner: &Owner, spool: &[u8; 16], confirmed: u64) -> Result<Option<u64>, Trouble> {
    let own = of_spool(folder, spool)?
        .into_iter()
        .filter(|(segment, head)| segment.retired.is_none() && head.owner == *owner);
    let own: Vec<(Segment, Head)> = own.collect();
    let mut first = None;
    for (at, (segment, head)) in own.iter().enumerate() {
        let end = match own.get(at + 1) {
            Some((_, next)) => Some(next.first),
            // What can't be read isn't thrown away.
            None => read(segment, head, None, |_| false, usize::MAX)
                .ok()
                .map(|content| content.next),
        };
        if end.is_some_and(|end| end <= confirmed + 1) {
            fs::remove_file(&segment.path).map_err(io("remove", &segment.path))?;
        } else {
            let name = segment.path.file_stem().unwrap_or_default().to_string_lossy();
            let aside = folder.join(format!("{name}-{confirmed:016x}.{RETIRED}"));
            fs::rename(&segment.path, aside).map_err(io("rename", &segment.path))?;
            first = first.or(Some(head.first.max(confirmed + 1)));
        }
    }
    if !own.is_empty() {
        sync_folder(folder)?;
    }
    Ok(first)
}

/// The segments of a spool, whosever it is and whatever became of it, in order.
fn of_spool(folder: &Path, spool: &[u8; 16]) -> Result<Vec<(Segment, Head)>, Trouble> {
    let all = all_segments(folder)?.into_iter();
    let mut found: Vec<(Segment, Head)> = all
        .filter_map(|segment| Some((segment.clone(), segment.head?)))
        .filter(|(_, head)| head.spool == *spool)
        .collect();
    found.sort_by_key(|(_, head)| head.first);
    Ok(found)
}

/// The events of a spool, whosever it is and whatever became of it.
pub fn entries(folder: &Path, spool: &[u8; 16]) -> Result<Vec<Entry>, Trouble> {
    let mut found = Vec::new();
    for (segment, head) in of_spool(folder, spool)? {
        found.append(&mut read(&segment, &head, None, |_| true, usize::MAX)?.entries);
    }
    Ok(found)
}

/// The oldest event of a spool behind `from`, whosever it is and whatever became of it, and the newest position. None when
/// there is none.
pub fn ends(folder: &Path, spool: &[u8; 16], from: u64) -> Result<Option<(Entry, u64)>, Trouble> {
    let all = of_spool(folder, spool)?;
    let behind = |(at, _): &(usize, &(Segment, Head))| all.get(at + 1).is_none_or(|(_, next)| next.first > from + 1);
    let (Some((_, (first, first_head))), Some((last, last_head))) = (all.iter().enumerate().find(behind), all.last())
    else {
        return Ok(None);
    };
    let newest = read(last, last_head, None, |_| false, usize::MAX)?.next - 1;
    let oldest = first_head.first.max(from + 1);
    let oldest = read(first, first_head, None, |position| position == oldest, 1)?.entries;
    Ok(oldest.into_iter().next().map(|oldest| (oldest, newest)))
}

/// Removes a spool, whosever it is, with the folder if nothing else is in it.
pub fn remove(folder: &Path, spool: &[u8; 16]) -> Result<(), Trouble> {
    for (segment, _) in of_spool(folder, spool)? {
        fs::remove_file(&segment.path).map_err(io("remove", &segment.path))?;
    }
    sync_folder(folder)?;
    // Whoever is beginning another there finds it gone, and makes it anew.
    let _ = fs::remove_dir(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("spool-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let data = std::env::temp_dir().join(name);
            fs::create_dir(&data).unwrap();
            Folder(folder(&data.join(FOLDER), 5))
        }

        fn only(&self) -> PathBuf {
            let all = segments(&self.0).unwrap();
            assert_eq!(all.len(), 1);
            all[0].path.clone()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.parent().unwrap().parent().unwrap());
        }
    }

    fn owner(node: &str) -> Owner {
        Owner {
            system: 42,
            node: node.as_bytes().to_vec(),
            database: 5,
        }
    }

    fn open(folder: &Folder) -> Result<Spool, Trouble> {
        Spool::open(&folder.0, &owner("north"), [7; 16], |_| false)
    }

    fn all(folder: &Folder) -> Result<Vec<(u64, Vec<u8>)>, Trouble> {
        let batch = Reader::new(&folder.0, &owner("north")).entries(|_| false, 1, u64::MAX, usize::MAX)?;
        let entries = batch.map(|batch| batch.entries).unwrap_or_default();
        Ok(entries.into_iter().map(|entry| (entry.position, entry.event)).collect())
    }

    fn events(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    const PLENTY: u64 = 1 << 30;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        assert_eq!(checksum(b"123456789"), 0xE306_9283);
        assert_eq!(checksum(&[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn events_come_back_in_order_after_it_was_opened_again() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        assert_eq!(spool.last(), 0);
        spool.append(&events(&["a", "bb"]), PLENTY).unwrap();
        drop(spool);
        let mut spool = Spool::open(&folder.0, &owner("north"), [8; 16], |_| false).unwrap();
        assert_eq!((spool.last(), spool.id()), (2, [7; 16]));
        spool.append(&events(&[""]), PLENTY).unwrap();
        assert_eq!(
            all(&folder).unwrap(),
            [(1, b"a".to_vec()), (2, b"bb".to_vec()), (3, Vec::new())]
        );
    }

    #[test]
    fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        spool.append(&events(&["first"]), PLENTY).unwrap();
        let before = fs::metadata(folder.only()).unwrap().len();
        spool.append(&events(&["second", "third"]), PLENTY).unwrap();
        drop(spool);
        let whole = fs::read(folder.only()).unwrap();
        let second = before + ((RECORD + "second".len()).next_multiple_of(8)) as u64;
        for length in before..whole.len() as u64 {
            fs::write(folder.only(), &whole[..length as usize]).unwrap();
            let mut spool = open(&folder).unwrap();
            let left = 1 + u64::from(length >= second);
            assert_eq!(spool.last(), left, "{length} bytes");
            spool.append(&events(&["again"]), PLENTY).unwrap();
            assert_eq!(all(&folder).unwrap().len() as u64, left + 1);
        }
        // A page of the batch that was never acknowledged is missing: what is behind it goes as well.
        let mut torn = whole.clone();
        torn[before as usize + 40] ^= 1;
        fs::write(folder.only(), &torn).unwrap();
        assert_eq!(open(&folder).unwrap().last(), 1);
    }

    #[test]
    fn damage_in_the_middle_is_an_error_and_nothing_is_cut() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        spool.append(&events(&["first"]), PLENTY).unwrap();
        spool.append(&events(&["second"]), PLENTY).unwrap();
        drop(spool);
        let whole = fs::read(folder.only()).unwrap();
        for at in HEAD..HEAD + RECORD + "first".len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            fs::write(folder.only(), &damaged).unwrap();
            assert!(matches!(open(&folder), Err(Trouble::Damaged { .. })), "byte {at}");
            assert!(matches!(all(&folder), Err(Trouble::Damaged { .. })), "byte {at}");
            assert_eq!(fs::read(folder.only()).unwrap(), damaged);
        }
    }

    #[test]
    fn what_is_in_front_of_damage_can_be_read() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        for event in ["one", "two", "three", "four"] {
            spool.append(&events(&[event]), PLENTY).unwrap();
        }
        let mut bytes = fs::read(folder.only()).unwrap();
        let third = HEAD + 2 * (RECORD + 3).next_multiple_of(8);
        bytes[third + RECORD] ^= 1;
        fs::write(folder.only(), bytes).unwrap();
        let mut reader = Reader::new(&folder.0, &owner("north"));
        let mut read = |from| {
            reader
                .entries(|_| false, from, u64::MAX, 1)
                .map(|batch| batch.unwrap().entries)
        };
        for (from, event) in [(1, "one"), (2, "two")] {
            let entries = read(from).unwrap();
            assert_eq!((entries.len(), &*entries[0].event), (1, event.as_bytes()));
        }
        assert!(matches!(read(3), Err(Trouble::Damaged { .. })));
        assert!(matches!(read(4), Err(Trouble::Damaged { .. })));
    }

    #[test]
    fn a_record_that_is_whole_but_not_the_next_is_damage() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        spool.append(&events(&["first"]), PLENTY).unwrap();
        let path = folder.only();
        drop(spool);
        let whole = fs::read(&path).unwrap();
        for (position, before) in [(3, [0; 32]), (2, [1; 32])] {
            let mut bytes = whole.clone();
            let hash = hash(&before, position, b"put in");
            put_record(&mut bytes, position, HEAD as u64, &hash, b"put in");
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(open(&folder), Err(Trouble::Damaged { .. })));
        }
    }

    #[test]
    fn what_is_another_nodes_or_systems_is_not_ones_own() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        spool.append(&events(&["north's"]), PLENTY).unwrap();
        for other in [
            owner("south"),
            Owner {
                system: 43,
                ..owner("north")
            },
            Owner {
                database: 6,
                ..owner("north")
            },
        ] {
            let mut its = Spool::open(&folder.0, &other, [9; 16], |_| false).unwrap();
            assert_eq!((its.last(), its.id()), (0, [9; 16]));
            let none = Reader::new(&folder.0, &other).entries(|_| false, 1, u64::MAX, 1);
            assert!(none.unwrap().is_none());
            its.append(&events(&["its"]), PLENTY).unwrap();
            assert_eq!(all(&folder).unwrap().len(), 1);
            assert_eq!(remove_confirmed(&folder.0, &other, &[9; 16], 1, 0).unwrap(), 1);
        }
        assert_eq!(all(&folder).unwrap(), [(1, b"north's".to_vec())]);
    }

    #[test]
    fn segments_follow_each_other_and_leave_when_they_are_confirmed() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        let large = vec![vec![b'x'; SEGMENT_BYTES as usize / 2]];
        for _ in 0..5 {
            spool.append(&large, PLENTY).unwrap();
        }
        let paths = || segments(&folder.0).unwrap().into_iter().map(|segment| segment.path);
        assert_eq!(paths().count(), 3);
        let mut reader = Reader::new(&folder.0, &owner("north"));
        let mut read = |from, until, bytes| {
            let batch = reader.entries(|_| false, from, until, bytes).unwrap().unwrap();
            let positions: Vec<u64> = batch.entries.iter().map(|entry| entry.position).collect();
            (positions, batch.oldest)
        };
        // From where it came to, from before that, and from behind it.
        assert_eq!(read(1, u64::MAX, 1), (vec![1], 1));
        assert_eq!(read(2, u64::MAX, 1), (vec![2], 1));
        assert_eq!(read(2, 4, usize::MAX), (vec![2, 3, 4], 1));
        assert_eq!(read(1, u64::MAX, usize::MAX), (vec![1, 2, 3, 4, 5], 1));
        assert_eq!(read(5, u64::MAX, 1), (vec![5], 1));
        assert_eq!(read(6, u64::MAX, 1), (vec![], 1));
        let found = newest(&folder.0, &owner("north"), |_| false).unwrap();
        assert_eq!(found, Some(([7; 16], 5)));
        let remove = |confirmed, keep| remove_confirmed(&folder.0, &owner("north"), &[7; 16], confirmed, keep).unwrap();
        assert_eq!(remove(1, 1), 0);
        assert_eq!(remove(3, 3), 0);
        assert_eq!(remove(3, 2), 1);
        assert_eq!(read(1, u64::MAX, usize::MAX), (vec![3, 4, 5], 3));
        assert_eq!(remove(5, 2), 0);
        assert_eq!(remove(5, 1), 1);
        assert_eq!(paths().count(), 1);
        // Opened again it goes on with the newest.
        drop(spool);
        let mut spool = open(&folder).unwrap();
        assert_eq!(spool.last(), 5);
        spool.append(&events(&["six"]), PLENTY).unwrap();
        assert_eq!(remove(5, 0), 0);
        assert_eq!(remove(6, 0), 1);
        assert_eq!(paths().count(), 0);
        // A segment that is missing in the middle is damage.
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        for _ in 0..5 {
            spool.append(&large, PLENTY).unwrap();
        }
        fs::remove_file(&segments(&folder.0).unwrap()[1].path).unwrap();
        assert!(matches!(all(&folder), Err(Trouble::Damaged { .. })));
    }

    #[test]
    fn nothing_goes_beyond_the_limit() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        spool.append(&events(&["first"]), PLENTY).unwrap();
        let used = fs::metadata(folder.only()).unwrap().len();
        let one = ((RECORD + 1).next_multiple_of(8)) as u64;
        assert!(matches!(
            spool.append(&events(&["2"]), used + one - 1),
            Err(Trouble::Full { .. })
        ));
        assert_eq!(spool.last(), 1);
        spool.append(&events(&["2"]), used + one).unwrap();
        assert_eq!(all(&folder).unwrap().len(), 2);
    }

    #[test]
    fn a_low_limit_never_stands_still_once_all_is_confirmed() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        let limit = 1024 * 1024;
        let event = vec![vec![b'x'; 100 * 1024]];
        let mut full = 0;
        for _ in 0..100 {
            if let Err(Trouble::Full { .. }) = spool.append(&event, limit) {
                full += 1;
                // As the shipper does.
                assert!(remove_confirmed(&folder.0, &owner("north"), &[7; 16], spool.last(), 2).unwrap() > 0);
                spool.append(&event, limit).unwrap();
            }
            let used: u64 = segments(&folder.0).unwrap().iter().map(|segment| segment.bytes).sum();
            assert!(used <= limit + HEAD as u64, "{used}");
        }
        assert!(full > 3);
        // And the segment before the newest is there, for a primary that lost the end of it.
        assert_eq!(segments(&folder.0).unwrap().len().min(2), 2);
    }

    #[test]
    fn what_is_sent_comes_back_or_is_refused() {
        let entries: Vec<Entry> = [&b"one"[..], b""]
            .iter()
            .zip(5..)
            .map(|(event, position)| Entry {
                position,
                hash: [position as u8; 32],
                event: event.to_vec(),
            })
            .collect();
        let bytes = pack(&entries);
        assert_eq!(unpack(&bytes).unwrap(), entries);
        assert_eq!(unpack(b"").unwrap(), []);
        for at in 0..bytes.len() {
            assert!(unpack(&bytes[..at]).map_or(true, |found| found.len() < 2), "{at} bytes");
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            // The four bytes behind the version, and what fills a record up, mean nothing.
            assert!(unpack(&damaged).map_or(true, |found| found == entries));
        }
    }

    #[test]
    fn a_retired_spool_is_let_alone_and_a_new_one_begun() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        spool.append(&events(&["old"]), PLENTY).unwrap();
        let retired = |id: &[u8; 16]| *id == [7; 16];
        let mut new = Spool::open(&folder.0, &owner("north"), [8; 16], retired).unwrap();
        assert_eq!(new.last(), 0);
        new.append(&events(&["new"]), PLENTY).unwrap();
        let batch = Reader::new(&folder.0, &owner("north")).entries(retired, 1, u64::MAX, 100);
        assert_eq!(batch.unwrap().unwrap().entries[0].event, b"new");
        // Both at once can't be told apart.
        assert!(matches!(open(&folder), Err(Trouble::Damaged { .. })));
    }

    #[test]
    fn of_a_spool_that_is_given_up_what_was_not_sent_is_put_aside_and_stays() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        let large = vec![vec![b'x'; SEGMENT_BYTES as usize / 2]];
        for _ in 0..5 {
            spool.append(&large, PLENTY).unwrap();
        }
        assert_eq!(segments(&folder.0).unwrap().len(), 3);
        assert_eq!(put_aside(&folder.0, &owner("south"), &[7; 16], 3).unwrap(), None);
        assert_eq!(put_aside(&folder.0, &owner("north"), &[7; 16], 3).unwrap(), Some(4));
        assert_eq!(put_aside(&folder.0, &owner("north"), &[7; 16], 3).unwrap(), None);
        assert_eq!(segments(&folder.0).unwrap().len(), 0);
        let left: Vec<u64> = entries(&folder.0, &[7; 16])
            .unwrap()
            .iter()
            .map(|entry| entry.position)
            .collect();
        assert_eq!(left, [3, 4, 5]);
        let found = |from| {
            let found = ends(&folder.0, &[7; 16], from).unwrap();
            found.map(|(oldest, newest)| (oldest.position, newest))
        };
        assert_eq!([0, 2, 3, 4].map(found), [(3, 5), (3, 5), (4, 5), (5, 5)].map(Some));
        assert_eq!(found(5), None);
        assert_eq!(ends(&folder.0, &[8; 16], 0).unwrap(), None);
        // Another is begun beside it, and goes without it.
        let mut spool = Spool::open(&folder.0, &owner("north"), [8; 16], |_| false).unwrap();
        assert_eq!(spool.last(), 0);
        spool.append(&events(&["new"]), PLENTY).unwrap();
        assert_eq!(put_aside(&folder.0, &owner("north"), &[8; 16], 1).unwrap(), None);
        assert_eq!(entries(&folder.0, &[8; 16]).unwrap().len(), 0);
        assert!(all_segments(&folder.0)
            .unwrap()
            .iter()
            .all(|segment| segment.retired == Some(3)));
        // What is damaged is not thrown away either.
        let mut spool = Spool::open(&folder.0, &owner("north"), [9; 16], |_| false).unwrap();
        spool.append(&events(&["one"]), PLENTY).unwrap();
        spool.append(&events(&["two"]), PLENTY).unwrap();
        let path = segments(&folder.0).unwrap()[0].path.clone();
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEAD + RECORD] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(put_aside(&folder.0, &owner("north"), &[9; 16], 2).unwrap(), Some(3));
        assert!(matches!(entries(&folder.0, &[9; 16]), Err(Trouble::Damaged { .. })));
        for id in [[7; 16], [9; 16]] {
            assert!(folder.0.exists());
            remove(&folder.0, &id).unwrap();
        }
        assert!(!folder.0.exists());
    }

    #[test]
    fn a_head_that_cannot_be_read_may_be_ones_own() {
        let folder = Folder::new();
        let mut spool = open(&folder).unwrap();
        spool.append(&events(&["first"]), PLENTY).unwrap();
        fs::write(folder.0.join("odd.segment"), b"odd").unwrap();
        fs::write(folder.0.join("draft.new"), b"").unwrap();
        let all = segments(&folder.0).unwrap();
        assert_eq!(all.iter().filter(|segment| segment.head.is_none()).count(), 1);
        assert_eq!(all.len(), 2);
        assert!(matches!(open(&folder), Err(Trouble::Damaged { .. })));
        fs::remove_file(folder.0.join("odd.segment")).unwrap();
        assert_eq!(open(&folder).unwrap().last(), 1);
    }
}
