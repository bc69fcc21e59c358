//! Raw access to the objects of a folder of manifests, for every process that works on it.
//!
//! Writers take an exclusive lock on `.lock` in the folder, so that what they read stays true until they have
//! written. Readers take no lock: a file is replaced by rename, and is always either the old or the new one.
//! A writer that is killed leaves at most a hidden temporary file behind.
//!
//! ```text
//!   lock ──► read ──► check preconditions ──► temp file ──► fsync ──► rename ──► fsync folder ──► unlock
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::files::{self, Contents, Fault, Signature};
use super::write;
use crate::cluster::error::{conflict, not_found, refused};
use crate::cluster::manifest::ObjectId;
use crate::cluster::{ClusterError, Problem};

/// Name of the lock file in the folder.
const LOCK_FILE: &str = ".lock";
/// A write takes milliseconds; whoever holds the lock for longer is stuck, and people should hear of it.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Between two tries: short against a write, long against a system call.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// A folder of manifests. Clones share their cache of parsed files.
#[derive(Clone, Debug)]
pub struct Store {
    root: Arc<Path>,
    cache: Arc<Mutex<Cache>>,
}

type Cache = HashMap<PathBuf, Cached>;

/// A parsed file.
#[derive(Clone, Debug)]
struct Cached {
    signature: Signature,
    /// When it was read, its last change was long past: the signature tells whether it changed since.
    settled: bool,
    contents: Arc<Contents>,
}

/// Every object of the folder at one moment.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    files: Vec<(PathBuf, Arc<Contents>)>,
}

/// A folder whose lock we hold: nobody else writes until this is dropped.
#[derive(Debug)]
pub struct Transaction<'a> {
    store: &'a Store,
    _lock: File,
}

impl Store {
    /// Opens an existing folder. Nothing is written.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ClusterError> {
        let root = root.as_ref();
        let real = root.canonicalize().map_err(|e| io_error(root, e))?;
        if !real.is_dir() {
            return Err(io_error(root, io::Error::from(io::ErrorKind::NotADirectory)));
        }
        Ok(Self { root: real.into(), cache: Arc::default() })
    }

    /// The folder, as an absolute path without symlinks.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every object, read now. Files that did not change since the last read are not parsed again.
    pub fn objects(&self) -> Result<Objects, ClusterError> {
        let unreadable = |e| io_error(&self.root, e);
        let before = files::identity(&self.root).map_err(unreadable)?;
        let listed = files::walk(&self.root).map_err(unreadable)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = Cache::with_capacity(listed.files.len());
        let mut objects = Objects::default();
        for (path, signature) in listed.files {
            let known = cache.remove(&path).filter(|known| known.settled && known.signature == signature);
            let Some(cached) = known.or_else(|| load(&path)) else { continue };
            objects.files.push((self.relative(&path), Arc::clone(&cached.contents)));
            fresh.insert(path, cached);
        }
        *cache = fresh;
        for (path, message) in listed.faults {
            let fault = Fault { document: 0, object: String::new(), message };
            let contents = Contents { faults: vec![fault], ..Contents::default() };
            objects.files.push((self.relative(&path), Arc::new(contents)));
        }
        // A folder that is moved away while it is read looks like one whose objects are all gone.
        if files::identity(&self.root).map_err(unreadable)? != before {
            return Err(unreadable(io::Error::other("the folder was replaced while it was read")));
        }
        Ok(objects)
    }

    /// One object.
    pub fn get(&self, id: &ObjectId) -> Result<Option<Value>, ClusterError> {
        Ok(self.objects()?.get(id).cloned())
    }

    /// Every object of a kind, in the order of their files.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>, ClusterError> {
        Ok(self.objects()?.of_kind(kind).cloned().collect())
    }

    /// Creates an object in a file of its own and returns it with uid, creationTimestamp, resourceVersion and
    /// generation set. [`ClusterError::Conflict`] where it exists already.
    pub fn create(&self, object: Value) -> Result<Value, ClusterError> {
        self.transaction(|tx| tx.create(object))
    }

    /// Replaces an object. Its `metadata.resourceVersion` (and uid, where set) must be the stored one, else
    /// [`ClusterError::Conflict`].
    pub fn update(&self, object: Value) -> Result<Value, ClusterError> {
        self.transaction(|tx| tx.update(object))
    }

    /// Changes an object by a closure, which sees it as it is stored now and may refuse. Nothing is written
    /// when the closure changes nothing.
    pub fn patch(
        &self,
        id: &ObjectId,
        change: impl FnOnce(&mut Value) -> Result<(), ClusterError>,
    ) -> Result<Value, ClusterError> {
        self.transaction(|tx| tx.patch(id, change))
    }

    /// Deletes an object; with a uid only the very one.
    pub fn delete(&self, id: &ObjectId, uid: Option<&str>) -> Result<(), ClusterError> {
        self.transaction(|tx| tx.delete(id, uid))
    }

    /// Does several things under one lock.
    pub fn transaction<T>(
        &self,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        body(&Transaction { store: self, _lock: self.lock()? })
    }

    /// Removes what killed writers left behind: under the lock, every temporary file is one.
    pub fn remove_leftovers(&self) -> Result<(), ClusterError> {
        self.transaction(|tx| write::remove_leftovers(tx.root()))
    }

    fn lock(&self) -> Result<File, ClusterError> {
        let path = self.root.join(LOCK_FILE);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| io_error(&path, e))?;
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    let seconds = LOCK_WAIT_MAX.as_secs();
                    let why = format!("another process has held the lock for {seconds} s; end it");
                    return Err(io_error(&path, io::Error::new(io::ErrorKind::TimedOut, why)));
                }
                Err(std::fs::TryLockError::Error(e)) => return Err(io_error(&path, e)),
            }
        }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }
}

/// Reads and parses a file; `None` when it went away since it was listed.
fn load(path: &Path) -> Option<Cached> {
    let now = SystemTime::now();
    let (signature, contents) = match files::read_file(path) {
        Ok((text, signature)) => {
            let json = path.extension().is_some_and(|ext| ext == "json");
            (signature, files::parse(&text, json))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            let fault = Fault { document: 0, object: String::new(), message: format!("cannot be read: {e}") };
            let signature = Signature::of(&path.symlink_metadata().ok()?);
            (signature, Contents { faults: vec![fault], ..Contents::default() })
        }
    };
    Some(Cached { signature, settled: signature.is_settled(now), contents: Arc::new(contents) })
}

impl Objects {
    /// The objects of these files, for dumps that are no folder.
    pub fn from_files(files: Vec<(PathBuf, Arc<Contents>)>) -> Self {
        Self { files }
    }

    /// Every object with its file and document; of several with one identity only the first counts.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &files::Entry)> {
        let mut seen = std::collections::HashSet::new();
        let all = self
            .files
            .iter()
            .flat_map(|(path, contents)| contents.entries.iter().map(move |entry| (path.as_path(), entry)));
        all.filter(move |(_, entry)| seen.insert(&entry.id))
    }

    /// One object.
    pub fn get(&self, id: &ObjectId) -> Option<&Value> {
        self.files.iter().flat_map(|(_, contents)| &contents.entries).find(|e| e.id == *id).map(|e| &e.value)
    }

    /// Every object of a kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.iter().filter(move |(_, entry)| entry.id.kind == kind).map(|(_, entry)| &entry.value)
    }

    /// Documents that could not be read, and objects that occur twice.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut first: HashMap<&ObjectId, &Path> = HashMap::new();
        for (path, contents) in &self.files {
            let file = path.display().to_string();
            problems.extend(contents.faults.iter().map(|fault| Problem {
                file: file.clone(),
                document: fault.document,
                object: fault.object.clone(),
                message: fault.message.clone(),
            }));
            for entry in &contents.entries {
                if let Some(other) = first.insert(&entry.id, path) {
                    first.insert(&entry.id, other);
                    problems.push(Problem {
                        file: file.clone(),
                        document: entry.document,
                        object: entry.id.to_string(),
                        message: format!("is already in {}, which counts; remove one", other.display()),
                    });
                }
            }
        }
        problems
    }

    /// The file that holds an object, relative to the folder, and the document in it.
    pub(super) fn place(&self, id: &ObjectId) -> Option<(&Path, &files::Entry)> {
        self.files.iter().find_map(|(path, contents)| {
            contents.entries.iter().find(|entry| entry.id == *id).map(|entry| (path.as_path(), entry))
        })
    }
}

impl Transaction<'_> {
    /// Every object; true until the transaction ends.
    pub fn objects(&self) -> Result<Objects, ClusterError> {
        self.store.objects()
    }

    /// See [`Store::get`].
    pub fn get(&self, id: &ObjectId) -> Result<Option<Value>, ClusterError> {
        self.store.get(id)
    }

    /// See [`Store::list`].
    pub fn list(&self, kind: &str) -> Result<Vec<Value>, ClusterError> {
        self.store.list(kind)
    }

    /// See [`Store::create`].
    pub fn create(&self, object: Value) -> Result<Value, ClusterError> {
        self.create_with_uid(object, &uuid::Uuid::new_v4().to_string())
    }

    /// Creates an object under a uid that something else refers to already.
    pub(super) fn create_with_uid(&self, mut object: Value, uid: &str) -> Result<Value, ClusterError> {
        let id = ObjectId::of(&object).map_err(|why| refused(&ObjectId::describe(&object), why))?;
        if self.get(&id)?.is_some() {
            return Err(conflict(&id, "it exists already".to_owned()));
        }
        write::stamp_new(&mut object, &id, uid);
        write::create(&self.store.root, &id, &object)?;
        Ok(object)
    }

    /// See [`Store::update`].
    pub fn update(&self, object: Value) -> Result<Value, ClusterError> {
        let id = ObjectId::of(&object).map_err(|why| refused(&ObjectId::describe(&object), why))?;
        self.patch(&id, |stored| {
            let (have, want) = (version(stored), version(&object));
            if have != want {
                return Err(conflict(&id, format!("its resourceVersion is {have:?}, not {want:?}")));
            }
            check_uid(&id, stored, object["metadata"]["uid"].as_str())?;
            *stored = object;
            Ok(())
        })
    }

    /// See [`Store::patch`].
    pub fn patch(
        &self,
        id: &ObjectId,
        change: impl FnOnce(&mut Value) -> Result<(), ClusterError>,
    ) -> Result<Value, ClusterError> {
        let objects = self.objects()?;
        let (path, entry) = objects.place(id).ok_or_else(|| not_found(id))?;
        let mut object = entry.value.clone();
        change(&mut object)?;
        if object == entry.value {
            return Ok(object);
        }
        if ObjectId::of(&object).ok().as_ref() != Some(id) {
            return Err(refused(&id.to_string(), "a change may not give it another identity".to_owned()));
        }
        write::stamp_changed(&entry.value, &mut object);
        write::replace(&self.store.root.join(path), id, entry.document, Some(&object))?;
        Ok(object)
    }

    /// See [`Store::delete`].
    pub fn delete(&self, id: &ObjectId, uid: Option<&str>) -> Result<(), ClusterError> {
        let objects = self.objects()?;
        let (path, entry) = objects.place(id).ok_or_else(|| not_found(id))?;
        check_uid(id, &entry.value, uid)?;
        write::replace(&self.store.root.join(path), id, entry.document, None)
    }

    /// The folder.
    pub(super) fn root(&self) -> &Path {
        &self.store.root
    }
}

fn version(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str()
}

fn check_uid(id: &ObjectId, stored: &Value, uid: Option<&str>) -> Result<(), ClusterError> {
    // Manifests written by hand have no uid: that is what an empty one means.
    let have = stored["metadata"]["uid"].as_str().unwrap_or_default();
    match uid {
        Some(want) if have != want => Err(conflict(id, format!("its uid is {have:?}, not {want:?}"))),
        _ => Ok(()),
    }
}

/// [`ClusterError::Io`] at a path.
pub fn io_error(place: &Path, source: io::Error) -> ClusterError {
    ClusterError::Io { place: place.display().to_string(), source }
}
