package store

import (
	"context"
	"database/sql"
	"errors"

	"warmboot"
)

// movePorts follows a change of the container's state, or of its host. A container holds its host ports from the moment it is created or
// started again until it has stopped or failed, as in Docker. One that is being deleted keeps what it holds to its end.
func (s *Store) movePorts(ctx context.Context, tx *sql.Tx, op string, c *warmboot.Container) error {
	switch c.State {
	case warmboot.ContainerStopped, warmboot.ContainerFailed:
		return releasePorts(ctx, tx, c.ID)
	case warmboot.ContainerCreating, warmboot.ContainerStarting:
		if err := releasePorts(ctx, tx, c.ID); err != nil {
			return err
		}
		return s.claimPorts(ctx, tx, op, c)
	}
	return nil
}

func releasePorts(ctx context.Context, tx *sql.Tx, id warmboot.ID) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM container_ports WHERE container_id = $1`, string(id))
	return err
}

// portsOf is the host of which a port is claimed. A container without one is of a time when there was but one host.
func portsOf(host warmboot.ID) string {
	if host == "" {
		return "00000000-0000-0000-0000-000000000000"
	}
	return string(host)
}

// claimPorts takes the container's ports on its host. The unspecified address (0.0.0.0 or ::) stands for every address of the
// host, of both families, because a socket bound to :: gets IPv4 connections too; so it conflicts with every other.
func (s *Store) claimPorts(ctx context.Context, tx *sql.Tx, op string, c *warmboot.Container) error {
	if err := s.dialect.lockPorts(ctx, tx, c.Spec.PortMappings); err != nil {
		return err
	}
	for _, p := range c.Spec.PortMappings {
		ip := p.HostIP.Unmap()
		var holder warmboot.Container
		err := tx.QueryRowContext(ctx, `SELECT c.id, c.name, c.state FROM container_ports p JOIN containers c ON c.id = p.container_id
			WHERE p.host_id = $1 AND p.host_port = $2 AND p.protocol = $3 AND (p.host_ip = $4 OR p.host_ip IN ('0.0.0.0', '::') OR $5) LIMIT 1`,
			portsOf(c.HostID), int(p.HostPort), string(p.Protocol), ip.String(), ip.IsUnspecified()).Scan(&holder.ID, &holder.Name, &holder.State)
		switch {
		case err == nil && holder.ID == c.ID:
			return warmboot.Errorf(warmboot.Invalid, op, "host port %d/%s is published twice", p.HostPort, p.Protocol)
		case err == nil:
			return warmboot.Errorf(warmboot.Conflict, op, "host port %d/%s is published by container %s (%s), which is %s; choose another port, or stop that container", p.HostPort, p.Protocol, holder.Name, holder.ID.Short(), holder.State)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO container_ports (container_id, host_id, host_ip, host_port, protocol) VALUES ($1, $2, $3, $4, $5)`,
			string(c.ID), portsOf(c.HostID), ip.String(), int(p.HostPort), string(p.Protocol)); err != nil {
			return err
		}
	}
	return nil
}
