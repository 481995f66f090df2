"""`become_dask` and `stop_dask`: the engines as workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ipython1.kernel.error import LaunchError
from ipython1.kernel.wire.addresses import LOOPBACK, outward
from ipython1.kernel.wire.objects import dumps_call
from ipython1.kernel.wire.runners import call_in

if TYPE_CHECKING:
    from ipython1.kernel.client.multiengine import MultiEngineClient
    from ipython1.kernel.client.targets import TargetSpec

ENGINE_SIDE = "ipython1.kernel.engine.dask_worker"
#: Seconds to reach the scheduler.
CONNECT_TIME = 10.0


def become_dask(
    mec: MultiEngineClient, targets: TargetSpec | None, dashboard: bool, options: dict[str, Any]
) -> Any:
    """See `MultiEngineClient.become_dask`."""
    distributed = _distributed()
    chosen = mec._chosen(targets)
    controller = mec._core.address.rpartition(":")[0].strip("[]")
    looks = dict(zip(chosen, _call(mec, chosen, "look", controller), strict=True))
    clusters = {address: security for _, address, security in looks.values() if address}
    if len(clusters) > 1:
        raise LaunchError(
            what="Dask", reason="these engines are workers of different Dask clusters; stop_dask() ends those"
        )
    hosts = _hosts({id: own for id, (own, _, _) in looks.items()}, controller)
    fresh = [id for id in chosen if not looks[id][1]]
    try:
        if clusters:
            [(address, security)] = clusters.items()
        else:
            security = _new_security(distributed)
            [address] = _call(mec, chosen[:1], "start_scheduler", hosts[chosen[0]], security, dashboard)
        _start_workers(mec, {id: hosts[id] for id in fresh}, address, security, options)
        return _client(mec, distributed, address, security)
    except BaseException:
        _stop(mec, fresh)
        raise


def stop_dask(mec: MultiEngineClient, targets: TargetSpec | None) -> None:
    """See `MultiEngineClient.stop_dask`."""
    _distributed()
    _stop(mec, mec._chosen(targets))


def _stop(mec: MultiEngineClient, chosen: Sequence[int]) -> None:
    over = {*_call(mec, chosen, "stop_worker")}
    for address, client in list(mec._dask.items()):
        if address in over or client.status != "running":
            del mec._dask[address]
            client.close()
    _call(mec, chosen, "stop_scheduler")


def _call(mec: MultiEngineClient, chosen: Sequence[int], name: str, *args: Any) -> list[Any]:
    found: list[Any] = mec.apply(call_in, ENGINE_SIDE, name, *args, targets=list(chosen), block=True)
    return found


def _start_workers(
    mec: MultiEngineClient, hosts: dict[int, str], address: str, security: Any, options: dict[str, Any]
) -> None:
    submits = []
    for host in {*hosts.values()}:
        ids = tuple(id for id, its in hosts.items() if its == host)
        args = (ENGINE_SIDE, "start_worker", address, security, host, options)
        submits.append((ids, dumps_call(call_in, args, {})))
    if submits:
        mec._send("become_dask", "apply", {}, submits, True)


def _hosts(own: dict[int, str], controller: str) -> dict[int, str]:
    """The address that each engine is to listen on."""
    if {*own.values()} == {outward((controller, 9)) or outward()}:
        return dict.fromkeys(own, LOOPBACK)  # one host, and this one
    unknown = [id for id, address in own.items() if not address or address.startswith("127.")]
    if unknown:
        reason = f"no address is known at which others can reach engine {unknown[0]}"
        raise LaunchError(what="Dask", reason=f"{reason}; see ipcluster start --location")
    return own


def _client(mec: MultiEngineClient, distributed: Any, address: str, security: dict[str, Any]) -> Any:
    known = mec._dask.get(address)
    if known is not None and known.status == "running":
        return known

    class Client(distributed.Client):  # type: ignore[misc]
        @property
        def dashboard_link(self) -> str | None:
            try:
                link: str | None = super().dashboard_link
            except KeyError:  # there is none
                return None
            return link

    try:
        client = Client(address, security=distributed.Security(**security), timeout=CONNECT_TIME)
    except OSError as error:
        reason = f"its scheduler at {address} cannot be reached from here ({error})"
        raise LaunchError(what="Dask", reason=reason) from error
    mec._dask[address] = client
    return client


def _new_security(distributed: Any) -> dict[str, Any]:
    """Certificate and key for one cluster: who has them is in it."""
    made = distributed.Security.temporary()
    names = [f"tls_{role}_{what}" for role in ("client", "scheduler", "worker") for what in ("key", "cert")]
    return {"require_encryption": True, **{name: getattr(made, name) for name in ["tls_ca_file", *names]}}


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ImportError(f"become_dask needs distributed: pip install 'ipython1[dask]' ({error})") from None
    return distributed
