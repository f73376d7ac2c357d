# 1. 检查系统状态
curl http://localhost:3000/api/v1/system/status
# 2. 同步账户状态
curl -X POST http://localhost:3000/api/v1/account/sync \
-H "Content-Type: application/json" \
-d '{"accounts": ["pacifica-main", "aster-hedge"], "includePositions": true}'
# 3. 检查风险指标
curl http://localhost:3000/api/v1/risk/metrics/pacifica-main
# 4. 执行Delta控制
curl -X POST http://localhost:3000/api/v1/delta/control \
-H "Content-Type: application/json" \
-d '{
"targetDelta": 0.0,
"accounts": ["pacifica-main", "aster-hedge"],
"maxDeviation": 0.1,
"symbol": "BTC-USD"
}'
# 5. 检查执行结果和新的风险状态
curl http://localhost:3000/api/v1/risk/alerts
# 持续监控风险警报
while true; do
curl -s http://localhost:3000/api/v1/risk/alerts?severity=CRITICAL
sleep 30
done
# 定期利用率再平衡
curl -X POST http://localhost:3000/api/v1/utilization/rebalance \
-H "Content-Type: application/json" \
-d '{
"targetUtilization": 0.75,
"accounts": ["pacifica-main", "aster-hedge"],
"symbol": "BTC-USD"
}'
