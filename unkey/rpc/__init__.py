"""The management API `/v2/<group>.<operation>`: declarations of routes, and what serves them.

from unkey.rpc.authorization import T, U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, Archive, route
from unkey.rpc.schema import array, boolean, identifier, integer, nullable, obj, optional, string
"""
