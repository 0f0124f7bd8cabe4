package warmboot

// Lease says which manager is doing something to an entity. Several managers may share one store; whoever holds the lease is the
// only one to change the entity's state and to command its host. It is held for as long as its owner is a member of the
// managers (ManagerStore), so a manager that dies loses all its leases at once.
type Lease struct {
	Owner ID // of the manager; empty: nobody does anything
	// Generation counts the leases of an entity. A host refuses a command of an older generation than one it has obeyed: a manager that
	// was cut off, and does not know that it has lost the lease, cannot do harm.
	Generation int64
	// Held says that the owner is alive. A store sets it when it reads; it is never stored.
	Held bool
}

// HeldByOther reports whether a manager other than me holds the lease.
func (l Lease) HeldByOther(me ID) bool { return l.Held && l.Owner != me }

// Take is the lease that follows l when manager me takes it.
func (l Lease) Take(me ID) Lease { return Lease{Owner: me, Generation: l.Generation + 1, Held: true} }

// Release is the lease that follows l when its owner has done what it took it for.
func (l Lease) Release() Lease { return Lease{Generation: l.Generation} }

// Is reports whether l is still the lease that taken was.
func (l Lease) Is(taken Lease) bool {
	return l.Owner == taken.Owner && l.Generation == taken.Generation
}
