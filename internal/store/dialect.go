package store

import (
	"context"
	"database/sql"

	"github.com/pressly/goose/v3"

	"warmboot"
)

// dialect is what differs between databases. The texts use $1, $2, … for values, which all of them understand.
type dialect struct {
	open       func(url string) (write, read *sql.DB, err error)
	goose      goose.Dialect // for the table of migrations
	migrations string        // directory
	// migrationLock makes managers that start at once migrate one after the other.
	migrationLock func() (goose.ProviderOption, error)
	bytewise      string // the collation that compares text byte by byte
	forUpdate     string // ends a SELECT whose row will be written in the same transaction
	// forKeyShare ends a SELECT whose row nobody who selects it for update may alter to the end of the transaction; plain updates go on.
	forKeyShare string
	forShare    string // ends a SELECT whose row must stay as it is to the end of the transaction
	// lockPorts keeps others from claiming the same ports before the transaction has ended.
	lockPorts func(context.Context, *sql.Tx, []warmboot.PortMapping) error
	// lockSnapshots keeps others from creating snapshots before the transaction has ended.
	lockSnapshots func(context.Context, *sql.Tx) error
	// listen hands over what Publish sends until the connection breaks or ctx ends; nil: the database serves one manager only.
	listen func(ctx context.Context, url string, connected func(), message func(string)) error
	// again tells whether a transaction that failed so, and was undone, may succeed if it is just run again.
	again func(error) bool
	// classify tells what an error of the driver means, and what to do about it.
	classify func(error) (code warmboot.Code, advice string)
}
