package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace/logstore"
)

// Names of files in the data directory.
const (
	lockName       = "LOCK"
	versionName    = "VERSION"
	journalName    = "journal"
	checkpointName = "checkpoint"
	reserveName    = "reserve"
	topicsDir      = "topics"
	trashDir       = "trash"
)

// FormatVersion is the version of the data directory this package writes. It
// reads every version up to this one; see FORMAT.md.
const FormatVersion = 1

const (
	versionPrefix = "millrace log "
	smallFileMax  = 4 << 10 // LOCK, VERSION and topic.id are a line each
)

// takeLock keeps other processes out and counts the openings of the directory.
func takeLock(fs FS) (io.Closer, int64, error) {
	var lock io.Closer = noLock{}
	if l, ok := fs.(locker); ok {
		var err error
		if lock, err = l.Lock(lockName); errors.Is(err, errLocked) {
			holder, _ := readFile(fs, lockName, smallFileMax)
			return nil, 0, fmt.Errorf("another process uses it (LOCK says %q): stop that one first",
				strings.TrimSpace(string(holder)))
		} else if err != nil {
			return nil, 0, err
		}
	}
	epoch, err := countOpening(fs)
	if err != nil {
		return nil, 0, errors.Join(err, lock.Close())
	}
	return lock, epoch, nil
}

func countOpening(fs FS) (int64, error) {
	text, err := readFile(fs, lockName, smallFileMax)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	var epoch int64
	if fields := strings.Fields(string(text)); len(fields) > 1 && fields[0] == "epoch" {
		epoch, _ = strconv.ParseInt(fields[1], 10, 64) // a torn LOCK file starts over: flock is what protects
	}
	epoch++
	return epoch, writeFile(fs, lockName, fmt.Appendf(nil, "epoch %d pid %d\n", epoch, os.Getpid()))
}

type noLock struct{}

func (noLock) Close() error { return nil }

// checkVersion marks a new directory with the format version and refuses one
// that a newer program wrote. It reports whether the directory is new.
func checkVersion(fs FS) (fresh bool, err error) {
	text, err := readFile(fs, versionName, smallFileMax)
	if errors.Is(err, os.ErrNotExist) {
		return true, refuseForeign(fs)
	}
	if err != nil {
		return false, err
	}
	line, ok := strings.CutPrefix(strings.TrimSpace(string(text)), versionPrefix)
	version, convErr := strconv.Atoi(line)
	switch {
	case !ok || convErr != nil || version < 1:
		return false, &logstore.CorruptError{File: versionName, Bytes: int64(len(text)), Reason: fmt.Sprintf("it says %q, not %q and a number", text, versionPrefix)}
	case version > FormatVersion:
		return false, fmt.Errorf("it has format version %d and this millrace knows versions up to %d: use the newer millrace that wrote it",
			version, FormatVersion)
	}
	return false, nil
}

// refuseForeign makes sure that a directory without a version mark holds no
// records. A checkpoint may be there: its first opening did not get further.
func refuseForeign(fs FS) error {
	entries, err := fs.ReadDir(topicsDir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return &logstore.CorruptError{File: versionName, Reason: fmt.Sprintf("it is missing beside %q", topicsDir+"/"+entries[0].Name)}
}

// writeVersion is the last step of making a directory a log.
func writeVersion(fs FS) error {
	temporary := versionName + ".tmp"
	if err := writeFile(fs, temporary, fmt.Appendf(nil, "%s%d\n", versionPrefix, FormatVersion)); err != nil {
		return err
	}
	if err := fs.Rename(temporary, versionName); err != nil {
		return err
	}
	return fs.SyncDir(".")
}
