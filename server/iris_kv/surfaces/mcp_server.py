"""The MCP server: the SDK's low-level server with our tools, resources, prompts and completions.

The low-level server is public, gives every handler the request's context, answers in both eras,
and leaves names, schemas, paging and errors to us, so no private part of the SDK is used.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from mcp.server import NotificationOptions, Server, ServerRequestContext
from mcp.server.models import InitializationOptions
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    DiscoverResult,
    EmptyResult,
    GetPromptRequestParams,
    GetPromptResult,
    InputRequiredResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    NotificationParams,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    PromptReference,
    PromptsCapability,
    ReadResourceRequestParams,
    ReadResourceResult,
    RequestParams,
    ServerCapabilities,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    TextContent,
    UnsubscribeRequestParams,
)
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from iris_kv import __version__
from iris_kv.errors import ForbiddenError, InvalidArgumentError, IrisError
from iris_kv.policy import check_access, check_right
from iris_kv.resume import resume
from iris_kv.rollout import Choice
from iris_kv.settings import Profile
from iris_kv.surfaces import resources
from iris_kv.surfaces.arguments import CacheClear, parsed
from iris_kv.surfaces.consent import consent_to_clear
from iris_kv.surfaces.failures import failure, invalid, protocol_error, translated, unforeseen
from iris_kv.surfaces.notify import Connections
from iris_kv.surfaces.tools import AGENT, Tool, offered
from iris_kv.surfaces.uris import entry_uri
from iris_kv.surfaces.visits import Visit, Visits
from iris_kv.workspace import Workspace

NAME: Final = "iris-kv"

Context = ServerRequestContext[Any, Any]
_log = logging.getLogger(__name__)

PROMPTS: Final = (
    Prompt(
        name="system",
        title="System prompt",
        description="The system prompt: compact with the trigger table, or full with every instruction",
        arguments=[
            PromptArgument(name="variant", description="compact or full; omitted: as the rollout decides"),
            PromptArgument(
                name="subject", description="Who it is for, which decides where compact is rolled out in part"
            ),
        ],
    ),
    Prompt(
        name="resume",
        title="Resume work",
        description="What is known of this workspace: project summary, open tasks, instructions in use",
    ),
)


class IrisServer(Server[Any]):
    """One server for any number of workspaces: each request says which it visits."""

    def __init__(self, visits: Visits, profile: Profile) -> None:
        """Offer what is visited with the tools of a profile."""
        self._visits = visits
        self._connections = Connections()
        self._offered = {tool.name: tool for tool in offered(profile)}
        super().__init__(
            NAME,
            version=__version__,
            title="iris-kv",
            lifespan=self._lifespan,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_subscribe_resource=self._subscribe,
            on_unsubscribe_resource=self._unsubscribe,
            on_subscriptions_listen=self._listen,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_completion=self._complete,
        )
        self.add_notification_handler("notifications/initialized", NotificationParams, self._initialized)
        self.add_request_handler("server/discover", RequestParams, self._discover)

    def _workspace(self, context: Context) -> Workspace:
        return self._visits.of(context).workspace

    def _reading(self, context: Context, what: str) -> Visit:
        """Return the visit of a request that reads, where its token allows that."""
        visit = self._visits.of(context)
        try:
            check_right(visit.principal, "kv:read", what)
        except ForbiddenError as error:
            raise protocol_error(error) from None
        return visit

    @asynccontextmanager
    async def _lifespan(self, _: Server[Any]) -> AsyncGenerator[dict[str, Any]]:
        async with self._visits.open():
            yield {}

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Advertise the notifications that are really sent; see the SDK's method."""
        sent = NotificationOptions(resources_changed=True, tools_changed=True)
        options = super().create_initialization_options(
            notification_options or sent, experimental_capabilities, extensions
        )
        visit = self._visits.opening()
        text = None if visit is None else visit.workspace.prompts.server_instructions()
        return options.model_copy(update={"instructions": text})

    def get_capabilities(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
        *,
        protocol_version: str | None = None,
    ) -> ServerCapabilities:
        """Advertise no change of the prompts, which are fixed; see the SDK's method."""
        found = super().get_capabilities(
            notification_options, experimental_capabilities, extensions, protocol_version=protocol_version
        )
        # From 2026-07-28 on the SDK advertises every list's changes where one can be listened to.
        return found.model_copy(update={"prompts": PromptsCapability(list_changed=False)})

    async def _discover(self, context: Context, _: RequestParams) -> DiscoverResult:
        workspace = self._workspace(context)
        await workspace.instructions()
        return DiscoverResult(
            supported_versions=list(MODERN_PROTOCOL_VERSIONS),
            capabilities=self.get_capabilities(protocol_version=context.protocol_version),
            instructions=workspace.prompts.server_instructions(),
        )

    # Tools

    async def _list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        _refuse_cursor(params)
        tags = [instruction.tag for instruction in await self._workspace(context).instructions()]
        return ListToolsResult(tools=[tool.described(tags) for tool in self._offered.values()])

    async def _call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult | InputRequiredResult:
        tool = self._offered.get(params.name)
        if tool is None:
            known = ", ".join(self._offered)
            raise invalid(f"unknown tool {params.name!r}; the tools are {known}; call one of them")
        counter = self._workspace(context).counter
        outcome = "failed"
        try:
            answer = await self._answer(tool, context, params)
            outcome = "ok"
            return answer
        except IrisError as error:
            outcome = error.code
            return failure(str(error), counter, (params.arguments or {}).get("max_tokens"))
        except Exception:
            _log.exception("the tool %s failed", tool.name)
            return failure(unforeseen(tool.name), counter)
        finally:
            self._visits.answered(context, tool.name, outcome)

    async def _answer(
        self, tool: Tool, context: Context, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        visit = self._visits.of(context)
        check_right(visit.principal, "kv:read" if tool.read_only else "kv:write", tool.name)
        arguments = parsed(tool.name, tool.arguments, params.arguments or {})
        if isinstance(arguments, CacheClear):
            check_access(AGENT, arguments.scope, "clear")
            question = await consent_to_clear(context, params, arguments)
            if question is not None:
                return question
        answer = await tool.run(visit.workspace, arguments)
        if isinstance(answer, CallToolResult):
            return answer
        return CallToolResult(content=[TextContent(type="text", text=answer)])

    # Resources

    async def _list_resources(self, context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        cursor = None if params is None else params.cursor
        workspace = self._reading(context, "resources/list").workspace
        try:
            return await resources.list_resources(workspace, cursor)
        except InvalidArgumentError as error:
            raise protocol_error(error) from None
        except IrisError as error:
            _log.warning("entries cannot be listed: %s", error)
            return await resources.list_fixed(workspace)

    async def _list_templates(self, _: Context, params: PaginatedRequestParams | None) -> ListResourceTemplatesResult:
        _refuse_cursor(params)
        return ListResourceTemplatesResult(resource_templates=list(resources.TEMPLATES))

    async def _read_resource(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        uri, workspace = str(params.uri), self._reading(context, "resources/read").workspace
        return await translated(lambda: resources.read_resource(workspace, uri), uri=uri)

    # Changes

    async def _initialized(self, context: Context, _: NotificationParams) -> None:
        if self._connections.has(context):
            # It says so once; what follows would be kept until the connection ends.
            return
        async with self._connections.entered(context) as connection:
            self._visits.of(context).notifier.attend(connection)
            # A connection ends by cancelling what it still handles: the one way that the SDK tells of it.
            await anyio.sleep_forever()

    async def _subscribe(self, context: Context, params: SubscribeRequestParams) -> EmptyResult:
        notifier = self._reading(context, "resources/subscribe").notifier

        async def subscribe() -> EmptyResult:
            return await notifier.on_subscribe(self._connections.of(context), params)

        return await translated(subscribe, uri=str(params.uri))

    async def _unsubscribe(self, context: Context, params: UnsubscribeRequestParams) -> EmptyResult:
        notifier = self._visits.of(context).notifier

        async def unsubscribe() -> EmptyResult:
            return notifier.on_unsubscribe(self._connections.of(context), params)

        return await translated(unsubscribe, uri=str(params.uri))

    async def _listen(self, context: Context, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        notifier = self._reading(context, "subscriptions/listen").notifier
        return await translated(lambda: notifier.on_listen(context, params))

    # Prompts and completions

    async def _list_prompts(self, _: Context, params: PaginatedRequestParams | None) -> ListPromptsResult:
        _refuse_cursor(params)
        return ListPromptsResult(prompts=list(PROMPTS))

    async def _get_prompt(self, context: Context, params: GetPromptRequestParams) -> GetPromptResult:
        arguments = params.arguments or {}
        prompt = next((each for each in PROMPTS if each.name == params.name), None)
        if prompt is None:
            raise invalid(f"unknown prompt {params.name!r}; the prompts are system and resume")
        known = [argument.name for argument in prompt.arguments or ()]
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            allowed = ", ".join(known) or "none"
            raise invalid(f"unknown arguments {unknown} of {params.name}; allowed: {allowed}")
        workspace = self._reading(context, "prompts/get").workspace
        return await translated(lambda: _rendered(workspace, prompt.name, arguments))

    async def _complete(self, context: Context, params: CompleteRequestParams) -> CompleteResult:
        if isinstance(params.ref, PromptReference) and params.ref.name != "system":
            return CompleteResult(completion=Completion(values=[]))
        chosen = (params.context.arguments if params.context else None) or {}
        argument, workspace = params.argument, self._reading(context, "completion/complete").workspace
        found = await translated(lambda: resources.complete(workspace, argument.name, argument.value, chosen))
        most = resources.COMPLETIONS
        has_more = len(found) > most
        completion = Completion(values=found[:most], total=None if has_more else len(found), has_more=has_more)
        return CompleteResult(completion=completion)


def described(prompt: Choice) -> str:
    """Return which system prompt a client got, why, and what it should know besides."""
    description = f"{prompt.variant} system prompt (chosen by: {prompt.shown})"
    return f"{description}; {prompt.note}" if prompt.note else description


async def _rendered(workspace: Workspace, name: str, arguments: Mapping[str, str]) -> GetPromptResult:
    if name == "resume":
        return _prompt("What is known of this workspace", await resume(workspace, entry_uri))
    # Clients send "" for what a person left open in their form.
    variant, subject = (arguments.get(each) or None for each in ("variant", "subject"))
    prompt = await workspace.prompt(variant, subject=subject)
    return _prompt(described(prompt), prompt.text)


def _prompt(description: str, text: str) -> GetPromptResult:
    message = PromptMessage(role="user", content=TextContent(type="text", text=text))
    return GetPromptResult(description=description, messages=[message])


def _refuse_cursor(params: PaginatedRequestParams | None) -> None:
    if params is not None and params.cursor is not None:
        raise invalid("this list has one page; list it without a cursor")
