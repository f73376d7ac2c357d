//! What codes and alert topics mean and what to do, in English and Chinese, in one table: a language that lacks one does not
//! compile. Logs and codes stay English.

use deltaplane_types::{AlertTopic, Code};

/// A sentence on what is the case, and one on the next action.
pub struct Texts {
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const fn texts(meaning: &'static str, remedy: &'static str) -> Texts {
    Texts { meaning, remedy }
}

/// A code in English and in Chinese.
pub const fn of_code(code: Code) -> [Texts; 2] {
    match code {
        Code::InvalidRequest => [
            texts(
                "The request cannot be understood: a field is missing, unknown or out of range.",
                "Correct the fields that `errors` points to.",
            ),
            texts("请求无法理解：字段缺失、未知或超出范围。", "按 errors 的指示修正字段。"),
        ],
        Code::InvalidAccount => [
            texts("An account id has a wrong format or is not configured.", "See `GET /api/v1/accounts`."),
            texts("账户编号格式不对，或没有配置。", "见 GET /api/v1/accounts。"),
        ],
        Code::DeltaBeyondLimit => [
            texts(
                "The deviation is, or would end, beyond its limit: order-book depth, lot sizes or price caps left it short.",
                "Request it again, name more accounts, or raise `maxSlippage` or `maxDeviation`.",
            ),
            texts(
                "偏离超过限度：深度、最小单位或限价不够。",
                "再请求一次，增加账户，或提高 maxSlippage 或 maxDeviation。",
            ),
        ],
        Code::HedgeFailed => [
            texts(
                "A venue rejected an order; its code and words are in `error`.",
                "Do what `solution` says for that code of the venue.",
            ),
            texts("交易所拒绝了订单，代码和原文见 error。", "按该交易所代码的 solution 处理。"),
        ],
        Code::RiskBlocked => [
            texts(
                "A limit, a trading state or an alert of deltaplane rejected the request.",
                "Read the alert or limit that is named, and lift it if you mean it.",
            ),
            texts("被 deltaplane 的限额、交易状态或告警拒绝。", "看指出的告警或限额，确认后再解除。"),
        ],
        Code::MarketDataUnavailable => [
            texts(
                "There is no usable price.",
                "See `GET /api/v1/market/feeds` and repeat the request in a few seconds.",
            ),
            texts("没有可用的价格。", "见 GET /api/v1/market/feeds，几秒后再请求。"),
        ],
        Code::Conflict => [
            texts(
                "Another operation uses the symbol and account, or a more urgent one stopped this one.",
                "Look up the operation that is named, or send `Prefer: wait=SECONDS`.",
            ),
            texts(
                "另一个操作占用该品种和账户，或抢占了本操作。",
                "查询指出的操作，或发送 Prefer: wait=秒数。",
            ),
        ],
        Code::NotRunning => [
            texts(
                "The services are stopped or starting.",
                "Wait until `GET /readyz` answers 200, or `POST /api/v1/system/restart`.",
            ),
            texts("服务已停止或正在启动。", "等 GET /readyz 返回 200，或 POST /api/v1/system/restart。"),
        ],
        Code::NotFound => [
            texts(
                "There is no such operation, order, plan, policy or path.",
                "Look it up in the list of such things first.",
            ),
            texts("没有这个操作、订单、计划、策略或路径。", "请先查询对应的列表。"),
        ],
        Code::PlanChanged => [
            texts(
                "The plan of `planId` cannot be carried out any more, or was used.",
                "Compare both plans of the answer, and make a new dry run.",
            ),
            texts("planId 的计划不能再执行，或已经用过。", "比较回答里的两份计划，再做一次试运行。"),
        ],
        Code::Timeout => [
            texts(
                "The time of the operation ran out; an order may be unresolved.",
                "Do not send the request again: read its result in `GET /api/v1/operations/{id}`.",
            ),
            texts("操作超时，可能有未决订单。", "不要重复请求，查询 GET /api/v1/operations/{id}。"),
        ],
        Code::ProxyFailed => [
            texts(
                "The proxy of an account failed.",
                "Check the proxy, or name accounts that use another one.",
            ),
            texts("账户的代理失效。", "检查代理，或换账户。"),
        ],
        Code::NotPermitted => [
            texts(
                "The key is not permitted to do this, or preflight keeps the account out of trading.",
                "See `GET /api/v1/accounts/{id}/preflight`.",
            ),
            texts("密钥没有这个权限，或预检让账户停止交易。", "见 GET /api/v1/accounts/{id}/preflight。"),
        ],
        Code::TooManyRequests => [
            texts(
                "The request budget of a venue is used up, or too many operations are at work.",
                "Repeat the request after `Retry-After`.",
            ),
            texts("交易所的请求预算用完，或同时进行的操作太多。", "等 Retry-After 之后再请求。"),
        ],
        Code::Internal => [
            texts("A defect of deltaplane; `errorId` is in the log too.", "Report it with the `errorId`."),
            texts("deltaplane 的缺陷，errorId 也在日志里。", "带上 errorId 报告。"),
        ],
    }
}

/// An alert topic in Chinese. Its English message has the numbers of each alert and comes from the engine.
pub const fn of_topic(topic: AlertTopic) -> Texts {
    match topic {
        AlertTopic::Delta => texts(
            "净敞口离目标太远：偏离率超过 0.10 WARN，超过 0.25 CRITICAL，持续十秒。",
            "用 POST /api/v1/delta/control 对冲，或设置策略。有策略时看它的 reason。",
        ),
        AlertTopic::Utilization => {
            texts("初始保证金 / 权益超过 0.80 WARN，超过 0.95 CRITICAL。", "补保证金、减仓或再平衡。")
        }
        AlertTopic::MarginRatio => texts(
            "维持保证金 / 权益超过 0.50 WARN，超过 0.80 CRITICAL；到 1 就会被强平。",
            "立即补保证金，或两边减仓。",
        ),
        AlertTopic::LiquidationDistance => texts(
            "这么大的价格变动会强平该账户：低于 0.15 WARN，低于 0.08 CRITICAL。",
            "补保证金，或让策略两边降杠杆。",
        ),
        AlertTopic::Equity => texts("账户权益为零或负。", "补保证金或平仓；查看交易所是否发生了强平。"),
        AlertTopic::Runway => texts(
            "按现在的资金费，三天内（CRITICAL：一天内）保证金率到达临界值。",
            "补保证金或两边减仓。看 GET /api/v1/funding。",
        ),
        AlertTopic::Carry => {
            texts("该品种的仓位每天净付资金费超过价值的 0.0001。", "两边减仓，或反过来持有。")
        }
        AlertTopic::AdlRank => texts("该仓位在交易所自动减仓队列的前列。", "降低盈利或杠杆，或换交易所。"),
        AlertTopic::Delisting => texts("合约停牌、下架，或已公告结束。", "在结束前两边平仓。"),
        AlertTopic::AccountStale => texts(
            "账户一分钟读不到；流断开且读取失败时为十秒。",
            "检查交易所状态、密钥和代理；其他账户照常。看 GET /readyz。",
        ),
        AlertTopic::ValuationUnavailable => {
            texts("账户读得到，但缺价格或保证金表，算不出风险。", "检查 rest_url；持续时看日志。")
        }
        AlertTopic::AccountGone => {
            texts("日志里有未结束的订单，但配置里已没有该账户。", "把账户加回来，直到订单结清。")
        }
        AlertTopic::StateMismatch => texts(
            "私有流与读取结果不同，并经第二次读取确认；以读取为准。",
            "与交易所核对仓位；反复出现就重启服务并报告。",
        ),
        AlertTopic::ExternalActivity => texts(
            "仓位变了，但不是我们的订单：外部交易、强制平仓或交易所更正。它计入净敞口并被对冲。",
            "不是你做的就换密钥。看 GET /api/v1/reconciliation。",
        ),
        AlertTopic::UnmappedPosition => {
            texts("账户持有没有对应品种的合约。", "平掉它，在配置里映射，或写进 accept_unmapped。")
        }
        AlertTopic::UnreadableRow => {
            texts("交易所回答中有一行读不懂，已略过。", "看告警里的原文；若是你的仓位，先限制该品种。")
        }
        AlertTopic::SymbolMismatch => texts(
            "同名品种在交易所之间价格相差三倍以上，不是同一个币。只允许平仓。",
            "在配置里映射正确的合约。",
        ),
        AlertTopic::OrderUnresolved => {
            texts("有订单长时间结果未知。", "等待：它会被反复查询。检查网络和交易所状态。")
        }
        AlertTopic::FrozenOrder => texts(
            "订单的最终状态无法证明，相关账户在该品种上停止交易。",
            "在交易所按 clientOrderId 查找，然后 POST /api/v1/operations/{id}/resolve。",
        ),
        AlertTopic::OrderReopened => {
            texts("操作结束之后订单又成交，该品种变为 REDUCE_ONLY。", "核对仓位后设回 RUNNING。")
        }
        AlertTopic::LegUnhedged => {
            texts("一边成交，另一边没有跟上。", "用所有持有该品种的账户、tolerancePercent 0 做一次对冲。")
        }
        AlertTopic::FlattenIncomplete => {
            texts("平仓后还有仓位。", "排除原因（保证金、限价、交易所）后再平一次。")
        }
        AlertTopic::PriceBeyondCap => texts("价格越过限价，对冲没有做完。", "再请求一次，限价会跟随新价格。"),
        AlertTopic::LossResponse => {
            texts("一个账户被强制平仓，另一边没能跟上。", "用 POST /api/v1/delta/control 对冲。")
        }
        AlertTopic::Policy => texts(
            "策略的操作达不到目标，等待时间越来越长。",
            "看 GET /api/v1/policies 的 reason 和最后一次操作的 solution。",
        ),
        AlertTopic::KillSwitch => texts("紧急停止已启用。", "原因消除后用 engaged: false 解除。"),
        AlertTopic::KillSwitchCancel => texts("紧急停止时有挂单没能撤掉，仍在重试。", "到交易所手动撤单。"),
        AlertTopic::BreakerRefusals => {
            texts("该账户连续多次被拒单，已变为 REDUCE_ONLY。", "排除原因后设回 RUNNING。")
        }
        AlertTopic::BreakerMismatches => {
            texts("该账户一小时内多次出现无法解释的仓位变化。", "查清谁在交易，再设回 RUNNING。")
        }
        AlertTopic::BreakerSlippage => {
            texts("一小时滑点超过限额，全局 REDUCE_ONLY。", "检查这一小时的操作，调低 maxSlippage 或数量。")
        }
        AlertTopic::BreakerLoss => texts("24 小时亏损超过限额。", "找到原因再设回 RUNNING。"),
        AlertTopic::Failover => texts(
            "当前行情源失效，已切换，或已没有可用的源。",
            "还有健康的源就不用处理；否则不会交易（1005）。",
        ),
        AlertTopic::NotFollowed => {
            texts("某行情源没有跟踪一个持有的品种。", "确认交易所上有该合约，加进配置的 symbols。")
        }
        AlertTopic::Proxy => texts("代理失效。", "检查代理；没有备用的账户停止交易（2002）。"),
        AlertTopic::Journal => texts(
            "日志写失败，或交易所上有日志不知道的订单（放回了旧副本）。",
            "磁盘满：腾出空间会自行恢复；否则停机，恢复最新副本，核对每个仓位。",
        ),
        AlertTopic::Service => {
            texts("引擎的某个服务停住或反复失败。", "POST /api/v1/system/restart，并报告日志。")
        }
    }
}
